// An authorization server for tests: oidc-provider, with token exchange (RFC 8693), in memory, on loopback.
//
//     node server.mjs < clients.json
//
// It prints "ready URL". The users alice and bob have signed in and given consent already: login_hint names the user.
// It reads its clients from standard input, as an array of client metadata, and serves until it is ended.
//
// The resource determines the token (RFC 8707): https://FORMAT.NAME.test is the service NAME, for which a token is a JWT
// that is signed with FORMAT (rs256, es256 or eddsa), or opaque.

import { once } from 'node:events';
import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';

import * as jose from 'jose';
import Provider, { errors } from 'oidc-provider';

const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const ALGORITHMS = { rs256: 'RS256', es256: 'ES256', eddsa: 'EdDSA' };
const SERVICES = ['profile-service', 'billing-service', 'user-service'];
const SCOPES = ['profile', 'email'];
const USERS = ['alice', 'bob'];

const clients = JSON.parse(await text(process.stdin));
const server = createServer((request, response) => handle(request, response));
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const issuer = `http://127.0.0.1:${server.address().port}`;

function resourceServer(resource) {
  const [, format, service] = /^https:\/\/(\w+)\.([\w-]+)\.test$/.exec(resource) ?? [];
  if (!SERVICES.includes(service) || !(format === 'opaque' || ALGORITHMS[format])) {
    throw new errors.InvalidTarget('unknown resource');
  }
  return {
    audience: service,
    scope: SCOPES.join(' '),
    accessTokenTTL: 300,
    ...(format === 'opaque'
      ? { accessTokenFormat: 'opaque' }
      : { accessTokenFormat: 'jwt', jwt: { sign: { alg: ALGORITHMS[format] } } }),
  };
}

async function newKeys() {
  const keys = Object.values(ALGORITHMS).map(async (alg) => {
    const { privateKey } = await jose.generateKeyPair(alg, { extractable: true });
    const jwk = await jose.exportJWK(privateKey);
    return { ...jwk, alg, use: 'sig', kid: await jose.calculateJwkThumbprint(jwk) };
  });
  return Promise.all(keys);
}

// Access tokens name their actors by this mark, because oidc-provider computes additional claims when it issues them.
const actors = new WeakMap();

function newProvider(keys) {
  const provider = new Provider(issuer, {
    clients,
    jwks: { keys },
    cookies: { keys: ['only-for-tests'] },
    scopes: SCOPES,
    claims: { openid: ['sub'] },
    pkce: { required: () => true },
    rotateRefreshToken: true,
    issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
    findAccount: (ctx, id) => (USERS.includes(id) ? { accountId: id, claims: () => ({ sub: id }) } : undefined),
    extraTokenClaims: (ctx, token) => (actors.has(token) ? { act: actors.get(token) } : undefined),
    interactions: { url: (ctx, interaction) => `/sign-in/${interaction.uid}` },
    async loadExistingGrant(ctx) {
      const grant = new provider.Grant({
        accountId: ctx.oidc.session.accountId,
        clientId: ctx.oidc.client.clientId,
      });
      grant.addOIDCScope('openid profile email');
      for (const resource of Object.keys(ctx.oidc.resourceServers ?? {})) {
        grant.addResourceScope(resource, SCOPES.join(' '));
      }
      await grant.save();
      return grant;
    },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: (ctx, client) => client.clientAuthMethod !== 'none' },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource) => resourceServer(resource),
      },
    },
  });
  provider.registerGrantType(
    TOKEN_EXCHANGE,
    (ctx) => exchange(provider, ctx),
    ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type', 'audience',
      'resource', 'scope'],
  );
  return provider;
}

// Returns the claims of an access token that this server has issued.
async function claimsOf(provider, token, type) {
  if (type !== ACCESS_TOKEN) throw new errors.InvalidRequest('the token type must be access_token');
  const keySet = jose.createLocalJWKSet({ keys: keys.map(({ d, p, q, dp, dq, qi, ...rest }) => rest) });
  if (token.split('.').length === 3) {
    try {
      return (await jose.jwtVerify(token, keySet, { issuer, typ: 'at+jwt' })).payload;
    } catch {
      throw new errors.InvalidGrant('the token is not valid');
    }
  }
  const found = (await provider.AccessToken.find(token)) ?? (await provider.ClientCredentials.find(token));
  if (!found?.isValid) throw new errors.InvalidGrant('the token is not valid');
  return { sub: found.accountId ?? found.clientId, client_id: found.clientId, scope: found.scope, ...found.extra };
}

// RFC 8693, sections 2.1 and 2.2.
async function exchange(provider, ctx) {
  const { client, params } = ctx.oidc;
  if (!params.subject_token) throw new errors.InvalidRequest('missing subject_token');
  if ((params.requested_token_type ?? ACCESS_TOKEN) !== ACCESS_TOKEN) {
    throw new errors.InvalidRequest('requested_token_type must be access_token');
  }
  const subject = await claimsOf(provider, params.subject_token, params.subject_token_type);
  const granted = (subject.scope ?? '').split(' ').filter(Boolean);
  const scopes = params.scope ? params.scope.split(' ') : granted;
  if (!scopes.every((scope) => granted.includes(scope))) {
    throw new errors.InvalidScope('the scope exceeds that of the subject_token', params.scope);
  }
  const resource = params.resource ?? `https://rs256.${params.audience}.test`;
  const token = new provider.AccessToken({ accountId: subject.sub, client, gty: TOKEN_EXCHANGE });
  token.resourceServer = new provider.ResourceServer(resource, resourceServer(resource));
  token.scope = scopes.join(' ') || undefined;
  if (params.actor_token) {
    const actor = await claimsOf(provider, params.actor_token, params.actor_token_type);
    if (actor.client_id !== client.clientId) throw new errors.InvalidGrant('the actor_token is that of another client');
    actors.set(token, { sub: actor.sub, ...(subject.act && { act: subject.act }) });
  } else if (subject.act) {
    actors.set(token, subject.act);
  }
  ctx.body = {
    access_token: await token.save(),
    issued_token_type: ACCESS_TOKEN,
    token_type: token.tokenType,
    expires_in: token.expiration,
    scope: token.scope,
  };
}

let keys = await newKeys();
let provider = newProvider(keys);
let callback = provider.callback();

async function handle(request, response) {
  const url = new URL(request.url, issuer);
  if (url.pathname.startsWith('/sign-in/')) {
    const { params } = await provider.interactionDetails(request, response);
    const result = USERS.includes(params.login_hint)
      ? { login: { accountId: params.login_hint }, consent: {} }
      : { error: 'access_denied' };
    return provider.interactionFinished(request, response, result);
  }
  if (url.pathname === '/keys/rotate') {
    const fresh = await newKeys();
    keys = url.searchParams.get('keep') === 'true' ? [...fresh, ...keys] : fresh;
    // Keys cannot be replaced in a provider. Codes, sessions and opaque tokens are kept by the storage that all share.
    provider = newProvider(keys);
    callback = provider.callback();
    return response.end();
  }
  return callback(request, response);
}

console.log(`ready ${issuer}`);
