"""Collections and training sets: the layout that every step reads, and the sources that become one."""
