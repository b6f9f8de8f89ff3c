"""Commands that write what a cluster takes, and the one that hands a run to Ray; each checks it before."""
