//! `[host]`: where this host keeps its files, listens, and what it offers.
//!
//! Owns the defaults, among them the name from the hostname. Never touches the machine: whether a folder can
//! be written or a user exists is found out by the agent. Called by `parse`.

use core::net::IpAddr;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::section::{Item, Section};
use super::{ApiTls, ClusterSettings, Context, HostPolicy, HostSettings};
use crate::spec::HostName;

/// The longest runtime folder: a socket's path has 107 bytes, and the sockets' names below it need the rest.
pub const MAX_RUNTIME_DIR: usize = 60;

/// The host, read as far as it could be; without a name there is a fault.
pub(super) fn read(root: &Section<'_>, cluster: &ClusterSettings, context: &Context) -> Option<HostSettings> {
    let section = &root.section("host", "{ name = \"alpha\" }");
    let listen = section
        .read("listen", |item| item.endpoint("an address and port such as \"0.0.0.0:7600\""))
        .unwrap_or_else(|| "0.0.0.0:7600".to_owned());
    let name = name(section, context);
    check_listen(root, section, cluster, &listen);
    let address = section.read("address", Item::text).unwrap_or_else(|| address_of(&listen));
    let agent = section.read("agent", |item| item.endpoint("a host and port such as \"10.0.0.1:7600\""));
    let agent = agent.or_else(|| cluster.peers.get(name.as_ref()?).cloned());
    let settings = HostSettings {
        name: name.clone().unwrap_or_else(placeholder),
        data_dir: section.read("data_dir", absolute).unwrap_or_else(|| "/var/lib/bigbrother".into()),
        runtime_dir: section.read("runtime_dir", runtime_dir).unwrap_or_else(|| "/run/bigbrother".into()),
        api: section
            .read("api", |item| api(item, section.has("api_tls")))
            .unwrap_or_else(|| Some("127.0.0.1:7610".to_owned())),
        api_tls: section.read("api_tls", api_tls).flatten(),
        agent: agent.unwrap_or_else(|| agent_of(&listen, &address)),
        address,
        listen,
        ports: section.read("ports", range).unwrap_or((20_000, 29_999)),
        labels: section.read("labels", labels).unwrap_or_default(),
        capacity: section.read("capacity", amounts).unwrap_or_default(),
        policy: policy(&section.section("policy", "{ users = [\"games\"] }")),
    };
    name.map(|_| settings)
}

/// Stands in while the other keys are read; never leaves this module.
fn placeholder() -> HostName {
    "unnamed".parse().expect("a legal name")
}

fn name(section: &Section<'_>, context: &Context) -> Option<HostName> {
    let written = section.read("name", Item::parsed::<HostName>);
    if let Some(name) = &context.host_override {
        return name
            .parse()
            .map_err(|reason| {
                section.fault("name", format!("--host {name:?} is no host name: {reason}"), None)
            })
            .ok();
    }
    if section.has("name") {
        return written;
    }
    let short = context.hostname.split('.').next().unwrap_or_default().to_lowercase();
    let refuse = |reason| {
        section.fault(
            "name",
            format!("the hostname {short:?} cannot be this host's name: {reason}"),
            Some("set `name` in [host], or give --host NAME"),
        );
    };
    short.parse().map_err(refuse).ok()
}

/// Without certificates nobody knows who connects.
fn check_listen(root: &Section<'_>, section: &Section<'_>, cluster: &ClusterSettings, listen: &str) {
    let secured = root.again("cluster").has("tls");
    // Peers elsewhere are a fault of their own.
    let near = cluster.peers.values().all(|address| is_loopback(address));
    if secured || cluster.peers.is_empty() || !near || is_loopback(listen) {
        return;
    }
    let host = host_of(listen);
    section.fault(
        "listen",
        format!("without `tls` in [cluster] `listen` must be a loopback address, not {host}"),
        Some("such as listen = \"127.0.0.1:7600\", or make certificates with `bigbrother ca`"),
    );
}

/// True for an endpoint that only this machine reaches.
pub(super) fn is_loopback(endpoint: &str) -> bool {
    let host = host_of(endpoint);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn absolute(item: &Item<'_>) -> Option<PathBuf> {
    let text = item.text()?;
    if !text.starts_with('/') {
        return item.wanted("an absolute path such as \"/var/lib/bigbrother\"");
    }
    Some(text.into())
}

fn runtime_dir(item: &Item<'_>) -> Option<PathBuf> {
    let path = absolute(item)?;
    let length = path.as_os_str().len();
    if length > MAX_RUNTIME_DIR {
        return item.refuse(
            format!("`runtime_dir` has {length} bytes, at most {MAX_RUNTIME_DIR} are possible"),
            Some("the sockets lie below it, and a socket's path has 107 bytes at most"),
        );
    }
    Some(path)
}

fn api(item: &Item<'_>, secured: bool) -> Option<Option<String>> {
    const WANTED: &str = "an address and port such as \"127.0.0.1:7610\", or \"\" for none";
    if item.as_str() == Some("") {
        return Some(None);
    }
    let endpoint = item.endpoint(WANTED)?;
    if !secured && !is_loopback(&endpoint) {
        let host = host_of(&endpoint);
        return item.refuse(
            format!("without `api_tls` `api` must be a loopback address, not {host}"),
            Some(
                "over plain HTTP everybody on the way reads the tokens; set api_tls = { cert = \"…\", key = \"…\" } \
                 (docs/security.md says how)",
            ),
        );
    }
    Some(Some(endpoint))
}

/// Both files, or a fault.
fn api_tls(item: &Item<'_>) -> Option<Option<ApiTls>> {
    const WANTED: &str =
        "a table such as { cert = \"/etc/bigbrother/api.pem\", key = \"/etc/bigbrother/api.key\" }";
    let section = item.section(WANTED)?;
    let file = |key: &str| {
        if !section.has(key) {
            section.fault(key, format!("`api_tls` has no `{key}`"), Some("it takes `cert` and `key`"));
        }
        section.read(key, absolute)
    };
    let (cert, key) = (file("cert"), file("key"));
    Some(cert.zip(key).map(|(cert, key)| ApiTls { cert, key }))
}

/// The host part of an endpoint, without brackets.
fn host_of(endpoint: &str) -> &str {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn address_of(listen: &str) -> String {
    let host = host_of(listen);
    let anywhere = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    if anywhere { "127.0.0.1".to_owned() } else { host.to_owned() }
}

/// Where the others find what listens there.
fn agent_of(listen: &str, address: &str) -> String {
    let anywhere = host_of(listen).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    match listen.rsplit_once(':').filter(|_| anywhere) {
        Some((_, port)) if address.contains(':') => format!("[{address}]:{port}"),
        Some((_, port)) => format!("{address}:{port}"),
        None => listen.to_owned(),
    }
}

fn range(item: &Item<'_>) -> Option<(u16, u16)> {
    const WANTED: &str = "a range such as \"20000-29999\"";
    let ends = item.as_str().and_then(|text| text.split_once('-'));
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|n| *n > 0);
    let Some((low, high)) = ends.and_then(|(low, high)| number(low).zip(number(high))) else {
        return item.wanted(WANTED);
    };
    if low > high {
        return item.refuse(
            format!("`ports` begins with {low} and ends with {high}"),
            Some(&format!("did you mean \"{high}-{low}\"?")),
        );
    }
    Some((low, high))
}

/// `{ region = "eu" }`
pub(super) fn labels(item: &Item<'_>) -> Option<BTreeMap<String, String>> {
    item.map("a table such as { region = \"eu\" }", Item::any_text)
}

/// `{ slots = 200 }`
pub(super) fn amounts(item: &Item<'_>) -> Option<BTreeMap<String, u64>> {
    item.map("a table such as { slots = 200 }", |item| {
        item.number(0..=i64::MAX).and_then(|n| u64::try_from(n).ok())
    })
}

fn policy(section: &Section<'_>) -> HostPolicy {
    let users = section.read("users", |item| item.list_of("a list such as [\"games\"]", Item::text));
    let programs = section.read("programs", |item| item.list_of("a list such as [\"/opt/game\"]", absolute));
    HostPolicy { users: users.unwrap_or_default(), programs: programs.unwrap_or_default() }
}

/// `host:port`, an IPv6 address in brackets.
pub fn is_endpoint(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let bare = !host.is_empty() && !host.contains(|c: char| c == ':' || c == '/' || c.is_whitespace());
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        (bracketed && host_of(text).parse::<IpAddr>().is_ok() || bare)
            && digits
            && port.parse::<u16>().is_ok()
    })
}

impl Item<'_> {
    /// `host:port`, an IPv6 address in brackets.
    pub(super) fn endpoint(&self, wanted: &str) -> Option<String> {
        self.as_str().filter(|text| is_endpoint(text)).map(str::to_owned).or_else(|| self.wanted(wanted))
    }
}
