//! `ca`: the certificates by which agents know each other.
//!
//! Owns only the arguments; what stands in a certificate is [`crate::cluster::tls::issue`]'s. Needs no agent.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output::Output;
use crate::cluster::tls::issue;
use crate::spec::HostName;

/// `ca`
#[derive(Debug, Args)]
pub struct CaArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make the cluster's CA: ca.pem for every host, ca.key for nobody but you.
    Init(InitArgs),
    /// Issue the certificate of a host: HOST.pem and HOST.key.
    Issue(IssueArgs),
    /// Issue what a host's API shows over TLS: HOST-api.pem and HOST-api.key.
    Api(ApiArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The folder to write into.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The cluster's name, for people who look at the certificate.
    #[arg(long, value_name = "NAME", default_value = "local")]
    cluster: String,
}

#[derive(Debug, Args)]
struct IssueArgs {
    /// The host's name, as in [host] name.
    #[arg(value_name = "HOST")]
    host: HostName,
    /// The folder with ca.pem and ca.key.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The folder to write into. Default: that of the CA.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ApiArgs {
    #[command(flatten)]
    host: IssueArgs,
    /// A name or an address by which the API is asked; may be given several times. Default: the host's name.
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
}

/// What was written.
#[derive(Serialize)]
struct Written {
    cert: PathBuf,
    key: PathBuf,
}

/// `ca`
pub fn run(args: CaArgs, out: &Output) -> Result<Exit, Failure> {
    let made = match args.what {
        What::Init(args) => issue::init(&args.dir, &args.cluster),
        What::Issue(args) => issue::issue(&args.dir, &args.host, args.out.as_ref().unwrap_or(&args.dir)),
        What::Api(ApiArgs { host: args, mut names }) => {
            if names.is_empty() {
                names.push(args.host.to_string());
            }
            issue::issue_api(&args.dir, &args.host, &names, args.out.as_ref().unwrap_or(&args.dir))
        }
    };
    let [cert, key] = made?;
    let text = format!("{}\n{}", cert.display(), key.display());
    out.answer(&Written { cert, key }, |_| text)?;
    Ok(Exit::Ok)
}
