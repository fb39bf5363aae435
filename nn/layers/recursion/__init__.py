"""One stack of layers applied again and again: depth that is chosen at the call, by the token, or learned."""
