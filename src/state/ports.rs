//! The ports of a run in the directory.
//!
//! Owns their shape: as a map on the wire, in memory a slice that copies of the entry share. A map of one port would be
//! most of what an entry takes. Called by the directory and whoever reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;

use crate::spec::Protocol;

/// Ports by their names, in the order of these. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ports(Arc<[(SmolStr, (Protocol, u16))]>);

impl Ports {
    /// All, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, (Protocol, u16))> {
        self.0.iter().map(|(name, port)| (name.as_str(), *port))
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<(Protocol, u16)> {
        self.iter().find(|(known, _)| *known == name).map(|(_, port)| port)
    }
}

impl From<&BTreeMap<String, (Protocol, u16)>> for Ports {
    fn from(ports: &BTreeMap<String, (Protocol, u16)>) -> Self {
        Ports(ports.iter().map(|(name, port)| (SmolStr::new(name), *port)).collect())
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Ports::from(&BTreeMap::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_told_as_the_map_that_they_were() {
        let map = BTreeMap::from([
            ("rcon".to_owned(), (Protocol::Tcp, 9000)),
            ("a name that is too long to be kept in place".to_owned(), (Protocol::Udp, 9001)),
        ]);
        let ports = Ports::from(&map);
        assert_eq!((ports.get("rcon"), ports.get("game")), (Some((Protocol::Tcp, 9000)), None));
        let text = serde_json::to_string(&ports).unwrap();
        assert_eq!(text, serde_json::to_string(&map).unwrap());
        assert_eq!(serde_json::from_str::<Ports>(&text).unwrap(), ports);
    }
}
