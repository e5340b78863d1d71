//! `audit`: which changes were asked for, by whom, and what came of them.

use std::time::{Duration, SystemTime};

use clap::Args;

use super::api::Api;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::render;
use crate::http::events::UNREACHABLE;
use crate::http::view::AuditView;

/// `audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only what was asked for within this time, such as 1h.
    #[arg(long, value_name = "SPAN", value_parser = super::read_span)]
    since: Option<Duration>,
    /// How many of the newest entries, at most 1000.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: u32,
}

/// `audit`
pub async fn audit(args: &AuditArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let since = args.since.and_then(|span| SystemTime::now().checked_sub(span));
    let since = since.map(|since| format!("&since={}", humantime::format_rfc3339_millis(since)));
    let path = format!("/v1/audit?limit={}{}", args.limit, since.unwrap_or_default());
    let (entries, missing) = api.get_noting::<Vec<AuditView>>(&path, UNREACHABLE).await?;
    for entry in &entries {
        if out.json { out.line(entry)? } else { out.text(&render::access::sentence(entry, &out.page()))? }
    }
    if let Some(hosts) = missing {
        eprintln!("nothing of {hosts}: not reachable");
    }
    Ok(Exit::Ok)
}
