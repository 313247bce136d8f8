//! Bytes from a client that was upgraded to WebSocket: however they are cut, the same messages come out, none too long.

use tare_manager::cri::streaming::websocket::frame::{LONGEST, Message, Messages};
use tokio::io::AsyncWriteExt as _;

pub fn try_input(input: &[u8]) {
    let whole = read(input, input.len().max(1));
    let cut = read(input, 1 + input.first().map_or(0, |byte| usize::from(*byte) % 16));
    assert_eq!(whole, cut, "cutting the bytes changes what they say");
    assert!(whole.iter().all(|message| message.bytes.len() <= LONGEST), "a message is too long");
}

fn read(input: &[u8], size: usize) -> Vec<Message> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime is had");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(size);
        let input = input.to_vec();
        tokio::spawn(async move {
            let _ = client.write_all(&input).await;
        });
        let mut messages = Messages::new(server);
        let mut read = Vec::new();
        while let Ok(Some(message)) = messages.next().await {
            read.push(message);
        }
        read
    })
}
