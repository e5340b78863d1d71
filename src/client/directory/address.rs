//! Where an agent answers.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where an agent answers: `unix:/path`, `https://HOST:PORT`, or on this machine `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Http(String),
    /// `HOST:PORT`, over TLS.
    Https(String),
}

/// Not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// None of the forms.
    #[error("an address is unix:/path/to/api.sock, https://HOST:PORT or http://HOST:PORT")]
    Form,
}

impl Address {
    /// True when the agent is certainly on this machine, so that its pids are ours.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Unix(_) => true,
            Address::Http(host) | Address::Https(host) => {
                let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
                let bare = name.trim_start_matches('[').trim_end_matches(']');
                // Of names this one alone: any other may lead anywhere, however it begins.
                name == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
        }
    }

    /// The `Host` header.
    pub fn host(&self) -> &str {
        match self {
            Address::Unix(_) => "localhost",
            Address::Http(host) | Address::Https(host) => host,
        }
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Address, InvalidAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(InvalidAddress::Form) } else { Ok(Address::Unix(path.into())) };
        }
        let secured = text.strip_prefix("https://");
        let host = secured.or_else(|| text.strip_prefix("http://"));
        let host = host.ok_or(InvalidAddress::Form)?.trim_end_matches('/');
        let (name, port) = host.rsplit_once(':').ok_or(InvalidAddress::Form)?;
        let invalid = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.contains(invalid) || port.parse::<u16>().is_err() {
            return Err(InvalidAddress::Form);
        }
        let host = host.to_owned();
        Ok(if secured.is_some() { Address::Https(host) } else { Address::Http(host) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Http(host) => write!(f, "http://{host}"),
            Address::Https(host) => write!(f, "https://{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_and_read_alike() {
        for text in
            ["unix:/run/x/api.sock", "http://127.0.0.1:7610", "http://[::1]:7610", "https://api.example:7610"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("http://h:1/".parse(), Ok(Address::Http("h:1".to_owned())));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "unix:",
            "/run/api.sock",
            "http://",
            "http://host",
            "http://:80",
            "http://h:99999",
            "http://a\r\nb:1",
        ] {
            assert_eq!(text.parse::<Address>(), Err(InvalidAddress::Form), "{text}");
        }
        assert_eq!("https://h".parse::<Address>(), Err(InvalidAddress::Form));
    }

    #[test]
    fn only_loopback_is_surely_this_machine() {
        for (text, local) in [
            ("unix:/x", true),
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost:1", true),
            ("https://localhost:1", true),
            ("http://127.255.0.1:1", true),
            ("http://127.evil.example:80", false),
            ("http://127.0.0.1.evil.example:80", false),
            ("http://localhost.evil.example:80", false),
            ("http://localhost:1:80", false),
            ("http://[::1]:1:80", false),
            ("http://reader@127.0.0.1:80", false),
            ("https://10.0.0.1:1", false),
            ("http://10.0.0.1:1", false),
            ("http://game.example:1", false),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().is_local(), local, "{text}");
        }
    }
}
