"""What speaks for or against a group of images, and the verdict."""
