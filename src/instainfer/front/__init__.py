"""The gateway: a process in front of a server that may go away. Any number of them may run, anywhere."""
