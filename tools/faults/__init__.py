"""Ten services, each with one fault, for practice and for the "Troubleshooting a 401" page.

python -m tools.faults 1     start two services and an issuer on loopback, with fault 1 of 10
"""
