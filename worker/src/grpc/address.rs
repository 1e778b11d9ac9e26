//! Where a server takes gRPC calls, as the servers tell each other in their etcd metadata (cluster protocol 12).

use std::collections::BTreeMap;

use shared::server::Server;

/// Internal host.
const HOST: &str = "grpcHost";
/// Internal port, decimal.
const PORT: &str = "grpcPort";
/// Host for servers of other regions.
const EXTERNAL_HOST: &str = "grpc-external-host";
/// Port for servers of other regions, decimal.
const EXTERNAL_PORT: &str = "grpc-external-port";
/// The server's region.
const REGION: &str = "region";

/// What a server announces of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Host for servers of the same region.
    pub host: String,
    /// Host for servers of other regions; empty for none.
    pub external_host: String,
    /// The port there; 0 means the internal one.
    pub external_port: u16,
    /// The own region; empty for none.
    pub region: String,
}

impl Announcement {
    /// Adds it to a server's metadata, under the keys that Pitaya's application helper writes.
    pub fn add_to(&self, port: u16, metadata: &mut BTreeMap<String, String>) {
        let external_port = if self.external_port == 0 { port } else { self.external_port };
        let has_external = !self.external_host.is_empty();
        let external_port = if has_external { external_port.to_string() } else { String::new() };
        let entries = [
            (HOST, self.host.clone()),
            (PORT, port.to_string()),
            (EXTERNAL_HOST, self.external_host.clone()),
            (EXTERNAL_PORT, external_port),
            (REGION, self.region.clone()),
        ];
        metadata.extend(entries.map(|(key, value)| (key.to_owned(), value)));
    }
}

/// Host and port of a server as seen from `region`; none for a server that does not say. There is no fallback from one
/// address to the other.
pub(crate) fn address_of(server: &Server, region: &str) -> Option<(String, u16)> {
    let text = |key: &str| server.metadata.get(key).map_or("", String::as_str);
    let (its_region, external_host) = (text(REGION), text(EXTERNAL_HOST));
    let is_external = !external_host.is_empty() && (its_region.is_empty() || its_region != region);
    let (host, port) =
        if is_external { (external_host, text(EXTERNAL_PORT)) } else { (text(HOST), text(PORT)) };
    let port = port.parse().ok().filter(|port| *port > 0)?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(entries: &[(&str, &str)]) -> Server {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Server {
            id: "a".into(),
            server_type: "room".into(),
            metadata: entries.iter().map(entry).collect(),
            frontend: false,
            hostname: String::new(),
        }
    }

    /// The table of cluster protocol 12, row by row.
    #[test]
    fn the_address_follows_regions_and_external_hosts() {
        let inside = [("grpcHost", "in"), ("grpcPort", "1")];
        let outside = [("grpc-external-host", "out"), ("grpc-external-port", "2")];
        let (is_in, is_out) = (Some(("in".to_owned(), 1)), Some(("out".to_owned(), 2)));
        for (its_region, has_external, own_region, expected) in [
            ("", true, "", &is_out),
            ("", true, "eu", &is_out),
            ("", false, "eu", &is_in),
            ("eu", true, "eu", &is_in),
            ("eu", false, "eu", &is_in),
            ("eu", true, "us", &is_out),
            ("eu", true, "", &is_out),
            ("eu", false, "us", &is_in),
        ] {
            let mut entries = inside.to_vec();
            entries.push(("region", its_region));
            if has_external {
                entries.extend(outside);
            }
            let found = address_of(&server(&entries), own_region);
            assert_eq!(found, *expected, "{its_region} {has_external} {own_region}");
        }
    }

    #[test]
    fn servers_without_a_whole_address_are_not_called() {
        for entries in [
            &[][..],
            &[("grpcHost", "in")],
            &[("grpcPort", "1")],
            &[("grpcHost", "in"), ("grpcPort", "x")],
            &[("grpcHost", "in"), ("grpcPort", "0")],
            &[("grpcHost", "in"), ("grpcPort", "1"), ("grpc-external-host", "out")],
        ] {
            assert_eq!(address_of(&server(entries), ""), None, "{entries:?}");
        }
    }

    #[test]
    fn what_is_announced_is_what_is_found() {
        let mut own = server(&[]);
        let announcement = Announcement { host: "in".into(), ..Announcement::default() };
        announcement.add_to(7, &mut own.metadata);
        assert_eq!(address_of(&own, "eu"), Some(("in".into(), 7)));
        let external =
            Announcement { external_host: "out".into(), region: "us".into(), ..announcement };
        external.add_to(7, &mut own.metadata);
        assert_eq!(address_of(&own, "eu"), Some(("out".into(), 7)));
        assert_eq!(address_of(&own, "us"), Some(("in".into(), 7)));
    }
}
