//! Templates in commands, environments and paths: `{port.NAME} {instance} {process} {ordinal} {host}
//! {host.label.NAME} {address} {data} {arg.NAME}`, `{{` and `}}` for braces.
//!
//! Pure. `config` checks templates with [`parse`]; the agent expands them with [`expand`] right
//! before a spawn. Never reads anything: all values come in [`Values`].

use std::collections::BTreeMap;

/// One part of a parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text that stands for itself.
    Text(String),
    /// A placeholder.
    Variable(Variable),
}

/// A placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variable {
    /// `{port.NAME}`
    Port(String),
    /// `{instance}`
    Instance,
    /// `{process}`
    Process,
    /// `{ordinal}`: the ordinal or counter; a per_host instance has none.
    Ordinal,
    /// `{host}`
    Host,
    /// `{host.label.NAME}`
    HostLabel(String),
    /// `{address}`
    Address,
    /// `{data}`
    Data,
    /// `{arg.NAME}`: an argument of an on-demand launch.
    Arg(String),
}

/// Why a template is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{` without `}`.
    #[error("'{{' is never closed; write '{{{{' for a brace")]
    Unclosed {
        /// Where it stands, in bytes from the start of the text.
        at: usize,
    },
    /// `}` without `{`.
    #[error("'}}' closes nothing; write '}}}}' for a brace")]
    Unopened {
        /// Where it stands.
        at: usize,
    },
    /// Not one of the placeholders.
    #[error(
        "unknown placeholder {{{name}}}; there are {{port.NAME}}, {{instance}}, {{process}}, {{ordinal}}, {{host}}, {{host.label.NAME}}, {{address}}, {{data}} and {{arg.NAME}}"
    )]
    Unknown {
        /// Where it stands.
        at: usize,
        /// What stands between the braces.
        name: String,
    },
}

/// A placeholder that has no value here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// The text is no template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The placeholder has no value for this instance on this host.
    #[error("{{{0}}} has no value here")]
    Missing(String),
}

/// What the placeholders stand for.
#[derive(Clone, Debug, Default)]
pub struct Values<'a> {
    /// `{port.NAME}`
    pub ports: BTreeMap<&'a str, u16>,
    /// `{instance}`
    pub instance: &'a str,
    /// `{process}`
    pub process: &'a str,
    /// `{ordinal}`
    pub ordinal: Option<u64>,
    /// `{host}`
    pub host: &'a str,
    /// `{host.label.NAME}`
    pub labels: BTreeMap<&'a str, &'a str>,
    /// `{address}`
    pub address: &'a str,
    /// `{data}`
    pub data: &'a str,
    /// `{arg.NAME}`
    pub args: BTreeMap<&'a str, &'a str>,
}

/// Splits a template into its parts.
pub fn parse(text: &str) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        let here = text.len() - rest.len() + at;
        let brace = &rest[at..at + 1];
        let after = &rest[at + 1..];
        if after.starts_with(brace) {
            plain.push_str(brace);
            rest = &after[1..];
            continue;
        }
        if brace == "}" {
            return Err(TemplateError::Unopened { at: here });
        }
        let end = after.find('}').ok_or(TemplateError::Unclosed { at: here })?;
        let name = &after[..end];
        let variable =
            variable(name).ok_or_else(|| TemplateError::Unknown { at: here, name: name.to_owned() })?;
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        parts.push(Part::Variable(variable));
        rest = &after[end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

fn variable(name: &str) -> Option<Variable> {
    let named = |prefix: &str| name.strip_prefix(prefix).filter(|n| !n.is_empty()).map(str::to_owned);
    match name {
        "instance" => Some(Variable::Instance),
        "process" => Some(Variable::Process),
        "ordinal" => Some(Variable::Ordinal),
        "host" => Some(Variable::Host),
        "address" => Some(Variable::Address),
        "data" => Some(Variable::Data),
        _ => named("port.")
            .map(Variable::Port)
            .or_else(|| named("host.label.").map(Variable::HostLabel))
            .or_else(|| named("arg.").map(Variable::Arg)),
    }
}

/// Replaces every placeholder by its value.
pub fn expand(text: &str, values: &Values<'_>) -> Result<String, ExpandError> {
    let mut out = String::new();
    for part in parse(text)? {
        match part {
            Part::Text(text) => out.push_str(&text),
            Part::Variable(variable) => out.push_str(&value(&variable, values)?),
        }
    }
    Ok(out)
}

fn value(variable: &Variable, values: &Values<'_>) -> Result<String, ExpandError> {
    let missing = |kind: &str, name: &str| ExpandError::Missing(format!("{kind}{name}"));
    match variable {
        Variable::Port(name) => {
            values.ports.get(name.as_str()).map(u16::to_string).ok_or_else(|| missing("port.", name))
        }
        Variable::Instance => Ok(values.instance.to_owned()),
        Variable::Process => Ok(values.process.to_owned()),
        Variable::Ordinal => values.ordinal.map(|n| n.to_string()).ok_or_else(|| missing("ordinal", "")),
        Variable::Host => Ok(values.host.to_owned()),
        Variable::HostLabel(name) => values
            .labels
            .get(name.as_str())
            .map(|v| (*v).to_owned())
            .ok_or_else(|| missing("host.label.", name)),
        Variable::Address => Ok(values.address.to_owned()),
        Variable::Data => Ok(values.data.to_owned()),
        Variable::Arg(name) => {
            values.args.get(name.as_str()).map(|v| (*v).to_owned()).ok_or_else(|| missing("arg.", name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_and_braces_expand() {
        let values = Values {
            ports: [("game", 20001)].into(),
            instance: "zone.3",
            process: "zone",
            ordinal: Some(3),
            host: "alpha",
            labels: [("region", "eu")].into(),
            address: "10.0.0.1",
            data: "/d",
            args: [("map", "x")].into(),
        };
        let text = "{port.game} {instance} {process} {ordinal} {host} {host.label.region} {address} {data} {arg.map} {{}}";
        assert_eq!(expand(text, &values).unwrap(), "20001 zone.3 zone 3 alpha eu 10.0.0.1 /d x {}");
    }

    #[test]
    fn faults_say_where() {
        assert_eq!(parse("ab{x"), Err(TemplateError::Unclosed { at: 2 }));
        assert_eq!(parse("a}b"), Err(TemplateError::Unopened { at: 1 }));
        assert_eq!(parse("a{prt.game}"), Err(TemplateError::Unknown { at: 1, name: "prt.game".into() }));
        assert_eq!(parse("{port.}"), Err(TemplateError::Unknown { at: 0, name: "port.".into() }));
    }

    #[test]
    fn a_placeholder_without_a_value_is_an_error() {
        let err = expand("{ordinal}", &Values::default()).unwrap_err();
        assert_eq!(err.to_string(), "{ordinal} has no value here");
    }
}
