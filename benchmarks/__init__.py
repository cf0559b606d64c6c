"""How fast the library is, beside its peers and the limits of the machine."""
