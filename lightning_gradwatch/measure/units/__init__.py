"""How active units are: counted on the device, kept over windows."""
