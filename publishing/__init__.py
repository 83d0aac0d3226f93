"""Turn a trained folder into a repository on the Hub: convert, merge, describe, check, prove, push."""
