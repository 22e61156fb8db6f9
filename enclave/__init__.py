"""What runs inside the Nitro Enclave: opens sealed jobs, seals results, and keeps the data keys to itself."""
