"""One module per fuzzed parser. Each makes a `TARGET`; `fuzz.registry` names them."""
