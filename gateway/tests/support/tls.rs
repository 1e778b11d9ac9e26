//! A certificate of the tests' own making, and clients that trust it.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use client::raw::{RawClient, RawError};
use client::upgrade::UpgradeRequest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// What the certificate is for.
pub(crate) const NAME: &str = "localhost";

/// Certificate and key in files.
pub(crate) struct Identity {
    directory: tempfile::TempDir,
}

impl Identity {
    /// Makes both.
    pub(crate) fn new() -> Self {
        let made = Self { directory: tempfile::tempdir().unwrap() };
        made.renew();
        made
    }

    /// Puts others in their place.
    pub(crate) fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
        fs::write(self.certificate(), made.cert.pem()).unwrap();
        fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
    }

    /// The certificate's file.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    /// The key's file.
    pub(crate) fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// The settings of a gateway that shows it.
    pub(crate) fn settings(&self) -> [(&'static str, String); 2] {
        [
            ("pitaya.gateway.tls.cert", self.certificate().to_str().unwrap().to_owned()),
            ("pitaya.gateway.tls.key", self.key().to_str().unwrap().to_owned()),
        ]
    }

    /// A client that trusts it as it is now.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client_of(rustls::ALL_VERSIONS)
    }

    /// A client that trusts it and speaks these versions only.
    pub(crate) fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.certificate()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

/// A TCP client with TLS.
pub(crate) fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<RawClient, RawError> {
    RawClient::connect_tcp(address)?.secure(config.clone(), NAME)
}

/// A WebSocket client with TLS.
pub(crate) fn connect_web_socket(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<RawClient, RawError> {
    connect(address, config)?.upgrade(&UpgradeRequest::new(NAME, "/"))
}
