"""Find, download, load, save, convert and push models; files written whole."""
