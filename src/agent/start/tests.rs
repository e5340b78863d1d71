//! How an agent ends.

use super::*;

/// It has no runtime of its own to be told by when it panics: what it tells by closes.
#[tokio::test]
async fn an_agent_ends_when_its_supervision_has_ended() {
    let (met, keeper_met) = watch::channel(None);
    let (hang_up, _reloads) = mpsc::channel(1);
    let mut signals = Signals::new().unwrap();
    let mut ended = std::pin::pin!(until_end(&mut signals, &hang_up, keeper_met));
    met.send_replace(Some(CgroupSupport::None));
    let patience = std::time::Duration::from_millis(50);
    assert!(tokio::time::timeout(patience, &mut ended).await.is_err(), "it lives, and has met its keeper");
    drop(met);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), ended).await;
    assert!(matches!(ended, Ok(Err(AgentError::Supervision))), "{ended:?}");
}
