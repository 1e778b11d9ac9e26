//! What the configuration says of NATS's credentials and of trust in its servers.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shared::config::Config;
use shared::nats::{Auth, Secret};

pub(super) fn auth(config: &Config) -> Result<Auth, String> {
    let secret = |key: &str| Some(config.secret(key)).filter(|secret| !secret.is_empty());
    let auth = if let Some(password) = secret("pitaya.nats.password") {
        Auth::UserPassword {
            user: config.string("pitaya.nats.user").to_owned(),
            password: Secret::new(password.reveal()),
        }
    } else if let Some(token) = secret("pitaya.nats.token") {
        Auth::Token(Secret::new(token.reveal()))
    } else if let Some(seed) = secret("pitaya.nats.nkey") {
        Auth::NKey(Secret::new(seed.reveal().trim()))
    } else if let Some(text) = secret("pitaya.nats.credentials") {
        Auth::from_credentials(text.reveal())
            .map_err(|error| format!("pitaya.nats.credentials: {error}"))?
    } else {
        Auth::None
    };
    auth.check().map_err(|error| format!("pitaya.nats: {error}"))?;
    Ok(auth)
}

pub(super) fn tls(config: &Config) -> Result<Arc<rustls::ClientConfig>, String> {
    let mut roots = rustls::RootCertStore::empty();
    match config.string("pitaya.nats.tls.ca") {
        "" => {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
        }
        path => {
            for certificate in certificates("pitaya.nats.tls.ca", path)? {
                roots.add(certificate).map_err(|error| format!("pitaya.nats.tls.ca: {error}"))?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let (chain, key) =
        (config.string("pitaya.nats.tls.cert"), config.string("pitaya.nats.tls.key"));
    let tls = if chain.is_empty() {
        builder.with_no_client_auth()
    } else {
        let chain = certificates("pitaya.nats.tls.cert", chain)?;
        let key = PrivateKeyDer::from_pem_file(Path::new(key))
            .map_err(|error| format!("pitaya.nats.tls.key = {key:?}: {error}"))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| format!("pitaya.nats.tls.cert: {error}"))?
    };
    Ok(Arc::new(tls))
}

fn certificates(key: &str, path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(Path::new(path))
        .and_then(Iterator::collect)
        .map_err(|error| format!("{key} = {path:?}: {error}"))
}
