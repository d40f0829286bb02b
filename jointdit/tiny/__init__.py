"""The tiny checkpoint that ships in the package: `architecture` says what it is made of, `checkpoint/` holds it."""
