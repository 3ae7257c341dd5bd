// A certified OpenID provider, set up as an operator would for machines: one client that may only
// use client credentials, and access tokens that are JWTs for the audience "frps".
//
// node provider.mjs PORT CLIENT SECRET [ALGORITHM] [LIFETIME_S]

import { generateKeyPairSync } from 'node:crypto'
import Provider from 'oidc-provider'

const [port, client_id, client_secret, algorithm = 'RS256', lifetime = '3600'] = process.argv.slice(2)
const kinds = {
  RS256: ['rsa', { modulusLength: 2048 }],
  ES256: ['ec', { namedCurve: 'P-256' }],
  Ed25519: ['ed25519', {}],
}

function jwk(alg) {
  const key = generateKeyPairSync(...kinds[alg]).privateKey.export({ format: 'jwk' })
  return { ...key, use: 'sig', alg, kid: `${alg}-${Date.now()}` }
}

const issuer = `http://127.0.0.1:${port}`
const provider = new Provider(issuer, {
  clients: [{
    client_id,
    client_secret,
    grant_types: ['client_credentials'],
    response_types: [],
    redirect_uris: [],
    id_token_signed_response_alg: algorithm,
  }],
  jwks: { keys: [...new Set(['RS256', algorithm])].map(jwk) },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => 'urn:frps',
      getResourceServerInfo: () => ({
        scope: '',
        audience: 'frps',
        accessTokenTTL: Number(lifetime),
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: algorithm } },
      }),
    },
  },
})
provider.listen(Number(port), '127.0.0.1', () => console.log(`listening as ${issuer}`))
