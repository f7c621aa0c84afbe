"""The directory driver: the same verbs over plain directories."""
