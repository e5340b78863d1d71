//! The API of the agent under test, over its Unix socket.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bigbrother::http::view::{EventView, InstanceView, StatusView};
use serde_json::Value;

use super::{Host, expect};

impl Host {
    pub fn get(&self, path: &str) -> Result<Value, String> {
        let (status, body) = self.ask("GET", path, "")?;
        match status {
            200 => serde_json::from_str(&body).map_err(|e| format!("{path}: {e}: {body}")),
            _ => Err(format!("{path}: {status}: {body}")),
        }
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let (status, answer) = self.ask("POST", path, &body.to_string())?;
        match status {
            200..300 => serde_json::from_str(&answer).map_err(|e| format!("{path}: {e}: {answer}")),
            _ => Err(format!("{path}: {status}: {answer}")),
        }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
        self.whole(method, path, body).map(|(status, _, body)| (status, body))
    }

    /// Status, head and body of an answer.
    pub fn whole(&self, method: &str, path: &str, body: &str) -> Result<(u16, String, String), String> {
        let words = |e: std::io::Error| format!("{method} {path}: {e}");
        let mut stream = UnixStream::connect(self.runtime.join("api.sock")).map_err(words)?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(words)?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).map_err(words)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(words)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {answer:?}"))?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
        Ok((status, head.to_owned(), body.to_owned()))
    }

    pub fn status(&self) -> Result<StatusView, String> {
        serde_json::from_value(self.get("/v1/status")?).map_err(|e| e.to_string())
    }

    pub fn ps(&self) -> Result<BTreeMap<String, InstanceView>, String> {
        let views: Vec<InstanceView> =
            serde_json::from_value(self.get("/v1/instances")?).map_err(|e| e.to_string())?;
        Ok(views.into_iter().map(|view| (view.instance.to_string(), view)).collect())
    }

    pub fn view(&self, instance: &str) -> Result<InstanceView, String> {
        self.ps()?.remove(instance).ok_or_else(|| format!("there is no {instance}"))
    }

    pub fn events(&self, instance: &str) -> Vec<EventView> {
        let events = self.get(&format!("/v1/events?instance={instance}")).unwrap();
        serde_json::from_value(events).unwrap()
    }

    /// The sum of all samples of a metric whose labels contain this text; "": of all.
    pub fn metric(&self, name: &str, label: &str) -> Result<f64, String> {
        let (status, text) = self.ask("GET", "/metrics", "")?;
        let samples = text.lines().filter(|line| line.contains(label)).filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with([' ', '{']) {
                return None;
            }
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        let samples: Vec<f64> = samples.collect();
        expect(status == 200 && !samples.is_empty(), format!("no {name}{{{label}}} in {text}"))?;
        Ok(samples.iter().sum())
    }
}
