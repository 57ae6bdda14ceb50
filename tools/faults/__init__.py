"""Ten services, each with one fault, for practice and for the page "Troubleshooting a 401".

python -m tools.faults 1     start two services and an issuer on loopback, with fault 1 of 10
"""
