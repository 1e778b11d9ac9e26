//! Who we are to a NATS server: credentials and the CONNECT line.
//!
//! Not the address (see [`super::url`]) and not the course of a connection (see [`super::client`]). Secrets are
//! masked in `Debug`; no error contains one.

use nkeys::KeyPair;
use serde::Serialize;

use super::info::ServerInfo;
use super::url::NatsUrl;
pub use crate::secret::Secret;

/// How a client proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// By name and password.
    UserPassword {
        /// Name.
        user: String,
        /// Password.
        password: Secret,
    },
    /// By one secret.
    Token(Secret),
    /// By the seed of a user key (`SU...`), with which the server's nonce is signed.
    NKey(Secret),
    /// By a token that an account has signed, and the seed of the key that it was issued for.
    Credentials {
        /// The JWT.
        jwt: Secret,
        /// The seed.
        seed: Secret,
    },
}

impl Auth {
    /// Reads the text of a credentials file: one block with the JWT, one with the seed, text around them ignored.
    ///
    /// ```text
    /// -----BEGIN NATS USER JWT-----
    /// <jwt>
    /// ------END NATS USER JWT------
    /// -----BEGIN USER NKEY SEED-----
    /// <seed>
    /// ------END USER NKEY SEED------
    /// ```
    pub fn from_credentials(text: &str) -> Result<Self, ConnectError> {
        let block = |kind: &str| {
            let is_begin = |line: &&str| {
                line.starts_with("---") && line.contains("BEGIN") && line.contains(kind)
            };
            let mut lines = text.lines().map(str::trim).skip_while(|line| !is_begin(line)).skip(1);
            lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
        };
        let jwt = block("JWT").ok_or(ConnectError::CredentialsJwt)?;
        let seed = block("SEED").ok_or(ConnectError::CredentialsSeed)?;
        KeyPair::from_seed(seed).map_err(|_| ConnectError::Seed)?;
        Ok(Self::Credentials { jwt: Secret::new(jwt), seed: Secret::new(seed) })
    }

    /// Checks what can be checked without a server, so that a wrong seed stops start-up instead of each connection.
    pub fn check(&self) -> Result<(), ConnectError> {
        match self {
            Self::NKey(seed) | Self::Credentials { seed, .. } => {
                KeyPair::from_seed(seed.reveal()).map(drop).map_err(|_| ConnectError::Seed)
            }
            Self::None | Self::UserPassword { .. } | Self::Token(_) => Ok(()),
        }
    }
}

/// Everything about a connection that does not depend on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Name in the server's monitoring, `type/id` by custom.
    pub name: String,
    /// Credentials.
    pub auth: Auth,
    /// Whether to insist on TLS even if the server does not.
    pub tls_required: bool,
    /// Time from one of our PINGs to the next, in milliseconds.
    pub ping_interval_ms: u64,
    /// How many PINGs of ours may be unanswered before the connection counts as dead.
    pub pings_outstanding_max: u32,
    /// Time from the first tick to the end of the greeting, in milliseconds.
    pub connect_timeout_ms: u64,
}

impl Default for ConnectOptions {
    /// No credentials, no TLS. A silent server is noticed within 30 seconds, a missing greeting within two, the
    /// time that Pitaya gives it (cluster protocol 11).
    fn default() -> Self {
        Self {
            name: String::new(),
            auth: Auth::None,
            tls_required: false,
            ping_interval_ms: 10_000,
            pings_outstanding_max: 2,
            connect_timeout_ms: 2_000,
        }
    }
}

impl ConnectOptions {
    /// These options for one server: credentials in its address come before ours, and it may insist on TLS.
    pub fn for_url(&self, url: &NatsUrl) -> Self {
        let auth = if url.auth == Auth::None { self.auth.clone() } else { url.auth.clone() };
        Self { auth, tls_required: self.tls_required || url.tls, ..self.clone() }
    }
}

/// Why a CONNECT cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Our seed is not the seed of a key.
    #[error("the seed is not a valid nkey seed")]
    Seed,
    /// The credentials file has no block with a JWT.
    #[error("no JWT in the credentials")]
    CredentialsJwt,
    /// The credentials file has no block with a seed.
    #[error("no seed in the credentials")]
    CredentialsSeed,
    /// We are to sign a nonce and the server has sent none, because it is not set up for keys.
    #[error("the server has sent no nonce to sign")]
    NonceMissing,
    /// The key cannot sign.
    #[error("signing the server's nonce failed")]
    Signing,
    /// The options cannot be written as JSON.
    #[error("encoding CONNECT failed")]
    Encoding,
}

/// The JSON object of CONNECT (cluster protocol 4.1).
#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the protocol's own fields")]
struct Connect<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    name: &'a str,
    lang: &'static str,
    version: &'static str,
    /// 1 = the server may send INFO at any time: new addresses, lame duck mode.
    protocol: u8,
    /// A server may call itself, and the broadcast of a bind comes back to its sender.
    echo: bool,
    headers: bool,
    no_responders: bool,
    #[serde(flatten)]
    credentials: ConnectCredentials<'a>,
}

#[derive(Default, Serialize)]
struct ConnectCredentials<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sig: Option<String>,
}

impl<'a> ConnectCredentials<'a> {
    fn new(auth: &'a Auth, info: &ServerInfo) -> Result<Self, ConnectError> {
        let none = Self::default();
        Ok(match auth {
            Auth::None => none,
            Auth::UserPassword { user, password } => {
                Self { user: Some(user), pass: Some(password.reveal()), ..none }
            }
            Auth::Token(token) => Self { auth_token: Some(token.reveal()), ..none },
            Auth::NKey(seed) => {
                let key = KeyPair::from_seed(seed.reveal()).map_err(|_| ConnectError::Seed)?;
                Self { nkey: Some(key.public_key()), sig: Some(sign_nonce(&key, info)?), ..none }
            }
            Auth::Credentials { jwt, seed } => {
                let key = KeyPair::from_seed(seed.reveal()).map_err(|_| ConnectError::Seed)?;
                Self { jwt: Some(jwt.reveal()), sig: Some(sign_nonce(&key, info)?), ..none }
            }
        })
    }
}

/// The signature of the server's nonce, in the URL-safe base 64 without padding.
fn sign_nonce(key: &KeyPair, info: &ServerInfo) -> Result<String, ConnectError> {
    let nonce = info.nonce.as_deref().ok_or(ConnectError::NonceMissing)?;
    let signature = key.sign(nonce.as_bytes()).map_err(|_| ConnectError::Signing)?;
    Ok(data_encoding::BASE64URL_NOPAD.encode(&signature))
}

/// The CONNECT line that answers the server's greeting, with its line end. `tls`: whether TLS is spoken already.
pub fn connect_line(
    options: &ConnectOptions,
    info: &ServerInfo,
    tls: bool,
) -> Result<Vec<u8>, ConnectError> {
    let connect = Connect {
        verbose: false,
        pedantic: false,
        tls_required: tls,
        name: &options.name,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        echo: true,
        headers: true,
        no_responders: true,
        credentials: ConnectCredentials::new(&options.auth, info)?,
    };
    let mut line = b"CONNECT ".to_vec();
    serde_json::to_writer(&mut line, &connect).map_err(|_| ConnectError::Encoding)?;
    line.extend_from_slice(b"\r\n");
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(auth: Auth, nonce: Option<&str>) -> Result<serde_json::Value, ConnectError> {
        let options = ConnectOptions { name: "room/1".into(), auth, ..Default::default() };
        let info = ServerInfo { nonce: nonce.map(str::to_owned), ..Default::default() };
        let line = connect_line(&options, &info, false)?;
        let line = line.strip_prefix(b"CONNECT ").unwrap().strip_suffix(b"\r\n").unwrap();
        assert!(!line.contains(&b'\n'));
        Ok(serde_json::from_slice(line).unwrap())
    }

    fn signature_is_valid(key: &KeyPair, nonce: &str, connect: &serde_json::Value) -> bool {
        let sig = connect["sig"].as_str().unwrap();
        let sig = data_encoding::BASE64URL_NOPAD.decode(sig.as_bytes()).unwrap();
        KeyPair::from_public_key(&key.public_key()).unwrap().verify(nonce.as_bytes(), &sig).is_ok()
    }

    #[test]
    fn connect_asks_for_what_the_cluster_needs() {
        let connect = json(Auth::None, None).unwrap();
        assert_eq!(
            connect,
            serde_json::json!({
                "verbose": false, "pedantic": false, "tls_required": false, "name": "room/1",
                "lang": "rust", "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "echo": true,
                "headers": true, "no_responders": true,
            })
        );
    }

    #[test]
    fn user_password_and_token_are_sent() {
        let password = Secret::new("p\"\r\n");
        let connect = json(Auth::UserPassword { user: "u".into(), password }, None).unwrap();
        assert_eq!((&connect["user"], &connect["pass"]), (&"u".into(), &"p\"\r\n".into()));
        let connect = json(Auth::Token(Secret::new("t")), None).unwrap();
        assert_eq!(connect["auth_token"], "t");
    }

    #[test]
    fn a_key_signs_the_nonce() {
        let key = KeyPair::new_user();
        let connect = json(Auth::NKey(Secret::new(key.seed().unwrap())), Some("nonce-1")).unwrap();
        assert_eq!(connect["nkey"], key.public_key());
        assert!(signature_is_valid(&key, "nonce-1", &connect));
        assert!(!signature_is_valid(&key, "nonce-2", &connect));
    }

    #[test]
    fn a_key_without_nonce_or_with_a_wrong_seed_is_an_error() {
        let seed = Secret::new(KeyPair::new_user().seed().unwrap());
        assert_eq!(json(Auth::NKey(seed), None).unwrap_err(), ConnectError::NonceMissing);
        let wrong = Auth::NKey(Secret::new("SUwrong"));
        assert_eq!(wrong.check(), Err(ConnectError::Seed));
        assert_eq!(json(wrong, Some("n")).unwrap_err(), ConnectError::Seed);
    }

    #[test]
    fn a_credentials_file_gives_token_and_signature() {
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\r\neyJ0.e30.c2ln\r\n------END NATS USER JWT------\r\n\r\n\
             *** IMPORTANT: a SEED is secret ***\r\n\r\n\
             -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
        );
        let auth = Auth::from_credentials(&text).unwrap();
        assert!(!format!("{auth:?}").contains(&seed));
        let connect = json(auth, Some("abc")).unwrap();
        assert_eq!(connect["jwt"], "eyJ0.e30.c2ln");
        assert!(signature_is_valid(&key, "abc", &connect));
        assert!(connect.get("nkey").is_none());
    }

    #[test]
    fn credentials_with_a_missing_block_say_which() {
        let jwt = "-----BEGIN NATS USER JWT-----\neyJ\n------END NATS USER JWT------\n";
        let empty = "-----BEGIN NATS USER JWT-----\n------END NATS USER JWT------\n";
        let error = |text: &str| Auth::from_credentials(text).unwrap_err();
        assert_eq!(error(""), ConnectError::CredentialsJwt);
        assert_eq!(error(empty), ConnectError::CredentialsJwt);
        assert_eq!(error(jwt), ConnectError::CredentialsSeed);
        let wrong_seed = format!("{jwt}-----BEGIN USER NKEY SEED-----\nSUX\n---END---\n");
        assert_eq!(error(&wrong_seed), ConnectError::Seed);
    }

    #[test]
    fn credentials_in_an_address_come_before_the_configured_ones() {
        let options =
            ConnectOptions { auth: Auth::Token(Secret::new("ours")), ..Default::default() };
        let urls = NatsUrl::parse_list("nats://u:p@a,tls://b").unwrap();
        assert_eq!(options.for_url(&urls[0]).auth, urls[0].auth);
        assert_eq!(options.for_url(&urls[1]).auth, options.auth);
        assert!(!options.for_url(&urls[0]).tls_required && options.for_url(&urls[1]).tls_required);
    }
}
