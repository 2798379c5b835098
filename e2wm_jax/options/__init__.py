"""Options of commands: names, words, values, files of settings."""
