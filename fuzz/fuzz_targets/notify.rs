//! Any datagram on a notify socket is read or refused; what it says holds no control characters.
#![no_main]

use bigbrother::process_api::notify;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(notice) = notify::read(data) {
        assert!(data.len() <= notify::MAX_DATAGRAM);
        assert!(notice.status.is_none_or(|text| !text.contains(char::is_control)));
        assert!(notice.main_pid.is_none_or(|pid| pid > 0));
    }
});
