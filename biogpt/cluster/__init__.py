"""Beyond one process: files of any number of texts, by processes of this machine or by Ray."""
