"""The server on a GPU through HTTP: fixed workloads, beside the goals and what another server reached."""
