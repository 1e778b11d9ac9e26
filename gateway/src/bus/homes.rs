//! The servers that a session keeps going back to, where the policy is to be sticky: one for each server type.
//!
//! Types and servers are named by the hashes of their names, so that this travels with the session to other reactors.
//! Sessions of other policies have none, and take no memory for it.

/// Where a session was served before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Homes(Vec<Home>);

/// A server that serves a session, by [`shared::router::identity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Of the server's type.
    pub server_type: u64,
    /// Of the server's id.
    pub server: u64,
}

impl Homes {
    /// The server of this type.
    pub fn find(&self, server_type: u64) -> Option<u64> {
        self.0.iter().find(|home| home.server_type == server_type).map(|home| home.server)
    }

    /// Goes to another server from now on. There are as many entries as types that the session ever reached.
    pub fn set(&mut self, home: Home) {
        match self.0.iter_mut().find(|known| known.server_type == home.server_type) {
            Some(known) => *known = home,
            None => self.0.push(home),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_one_home() {
        let mut homes = Homes::default();
        for (server_type, server) in [(1, 10), (2, 20), (1, 11)] {
            homes.set(Home { server_type, server });
        }
        assert_eq!((homes.find(1), homes.find(2), homes.find(3)), (Some(11), Some(20), None));
        assert_eq!(homes.0.len(), 2);
    }
}
