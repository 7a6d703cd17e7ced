"""Networks, their losses, and how they are saved."""
