"""Collections and training sets: the layout that every step reads, and how sources become one."""
