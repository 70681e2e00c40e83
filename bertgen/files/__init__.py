"""Files of the user: text that is read line by line, and files that are written whole or not at all."""
