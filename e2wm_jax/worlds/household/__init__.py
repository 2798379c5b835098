"""VirtualHome: rules, scenes and goals of a home, and three engines that act in it."""
