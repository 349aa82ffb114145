"""The Hub: publish an exported folder with its model card, and fetch one by its id."""
