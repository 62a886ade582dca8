// Verifies an access token, read from standard input, with jose against a JWKS URL, as a service in Node would.
import { createRemoteJWKSet, jwtVerify } from 'jose'
import { readFileSync } from 'node:fs'

const [jwks, issuer, audience] = process.argv.slice(2)
const token = readFileSync(0, 'utf8').trim()
const { payload } = await jwtVerify(token, createRemoteJWKSet(new URL(jwks)), { issuer, audience, algorithms: ['RS256'], typ: 'at+jwt' })
console.log(payload.sid)
