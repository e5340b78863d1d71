//! The process that is struck: certainly the main process of the chosen run, or nobody.

use std::io;

use nix::sys::signal::Signal;

use crate::cli::api::Api;
use crate::cli::exit::Failure;
use crate::cli::pidfd::Pidfd;
use crate::http::view::{InstanceView, StrikeRequest, StruckView};
use crate::spec::{HostName, InstanceId};

/// A run that is held by its process, or known by its number to the agent of its host.
#[derive(Debug)]
pub struct Victim {
    /// Whose run.
    pub instance: InstanceId,
    /// Where.
    pub host: HostName,
    /// Which run.
    pub run: u64,
    /// Its main process.
    pub pid: i32,
    process: Hold,
}

#[derive(Debug)]
enum Hold {
    /// On this machine.
    Here(Pidfd),
    /// On another one, whose agent strikes.
    There(Api),
}

/// Takes hold of the process if it is on the host that is `here`, then asks again whether it still is the chosen run's and ready. In this order
/// the held process is the right one, whatever happens to the pid. `None`: it is not any more.
pub async fn aim(chosen: &InstanceView, here: &HostName, api: &Api) -> Result<Option<Victim>, Failure> {
    let (Some(run), Some(pid)) = (chosen.run, chosen.pid) else { return Ok(None) };
    let process = match Pidfd::open(pid) {
        _ if chosen.host != *here => Hold::There(api.clone()),
        Ok(process) => Hold::Here(process),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(source) => return Err(Failure::Local { what: format!("cannot take hold of pid {pid}"), source }),
    };
    let now: Vec<InstanceView> = api.get(&format!("/v1/instances?instance={}", chosen.instance)).await?;
    let same = now.iter().any(|i| {
        let same = i.instance == chosen.instance && i.host == chosen.host && i.run == Some(run);
        same && i.pid == Some(pid) && i.state == "ready"
    });
    Ok(same.then(|| {
        let (instance, host) = (chosen.instance.clone(), chosen.host.clone());
        Victim { instance, host, run, pid, process }
    }))
}

impl Victim {
    /// Sends the signal; false when the process is gone.
    pub async fn strike(&self, signal: Signal) -> Result<bool, Failure> {
        let process = match &self.process {
            Hold::Here(process) => process,
            Hold::There(api) => {
                let (instance, host) = (self.instance.clone(), Some(self.host.clone()));
                let request = StrikeRequest { instance, run: self.run, signal: signal.to_string(), host };
                return Ok(api.post::<StruckView>("/v1/strike", &request).await?.struck);
            }
        };
        match process.send(signal) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(source) => Err(self.refused(signal, source)),
        }
    }

    fn refused(&self, signal: Signal, source: io::Error) -> Failure {
        let what = format!(
            "cannot send {signal} to {} (pid {}); run this as root or as the user of the game",
            self.instance, self.pid
        );
        Failure::Local { what, source }
    }
}
