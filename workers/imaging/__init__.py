"""Picture files: their containers are checked and stripped of metadata here before Pillow decodes a pixel."""
