"""What is found in a text: words, tags, entities, labels."""
