//! The process that is struck: certainly the main process of the chosen run, or nobody.

use std::io;

use nix::sys::signal::Signal;

use crate::cli::api::Api;
use crate::cli::exit::Failure;
use crate::cli::pidfd::Pidfd;
use crate::http::view::InstanceView;
use crate::spec::InstanceId;

/// A run that is held by its process.
#[derive(Debug)]
pub struct Victim {
    /// Whose run.
    pub instance: InstanceId,
    /// Which run.
    pub run: u64,
    /// Its main process.
    pub pid: i32,
    process: Pidfd,
}

/// Takes hold of the process, then asks again whether it still is the chosen run's and ready. In this order
/// the held process is the right one, whatever happens to the pid. `None`: it is not any more.
pub async fn aim(chosen: &InstanceView, api: &Api) -> Result<Option<Victim>, Failure> {
    let (Some(run), Some(pid)) = (chosen.run, chosen.pid) else { return Ok(None) };
    let process = match Pidfd::open(pid) {
        Ok(process) => process,
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(source) => return Err(Failure::Local { what: format!("cannot take hold of pid {pid}"), source }),
    };
    let now: Vec<InstanceView> = api.get(&format!("/v1/instances?instance={}", chosen.instance)).await?;
    let same = now.iter().any(|i| {
        i.instance == chosen.instance && i.run == Some(run) && i.pid == Some(pid) && i.state == "ready"
    });
    Ok(same.then(|| Victim { instance: chosen.instance.clone(), run, pid, process }))
}

impl Victim {
    /// Sends the signal; false when the process is gone.
    pub fn strike(&self, signal: Signal) -> Result<bool, Failure> {
        match self.process.send(signal) {
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
