"""Mining the long tail: which stretches of the logs are rare, and clips drawn from them to meet a target mix."""
