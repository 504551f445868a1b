"""The simulator: the core and the policies of the live server on a virtual clock, at modelled costs."""
