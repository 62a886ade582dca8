# Verifies an access token, read from standard input, with PyJWT against an issuer's key set, as a service in Python would.
import sys

import jwt

issuer, audience = sys.argv[1:]
token = sys.stdin.read().strip()
keys = jwt.PyJWKClient(issuer + "/.well-known/jwks.json")
if jwt.get_unverified_header(token).get("typ") != "at+jwt": raise jwt.InvalidTokenError("not an access token")
claims = jwt.decode(token, keys.get_signing_key_from_jwt(token).key, algorithms=["RS256"], issuer=issuer, audience=audience)
print(claims["sid"])
