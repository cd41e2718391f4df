//! Plain TCP applications.

use std::io;
use std::time::Duration;

use ambit_wire::proxy_v2::{Decoded, decode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::App;
use crate::pod::Pod;

impl Pod {
    /// Sends back what comes, and ends when the client does.
    pub fn serve_echo(&self, port: u16) -> App {
        self.serve(port, |mut stream, _| async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        })
    }

    /// Tells each client its address as the server sees it, and ends.
    pub fn serve_whoami(&self, port: u16) -> App {
        self.serve(port, |mut stream, peer| async move {
            stream.write_all(peer.ip().to_string().as_bytes()).await?;
            stream.shutdown().await?;
            // Read to the end, so that closing is no reset.
            tokio::io::copy(&mut stream, &mut tokio::io::sink())
                .await
                .map(drop)
        })
    }

    /// Speaks first, as databases and mail servers do: a greeting, then echo.
    pub fn serve_greeting(&self, port: u16, greeting: &'static str) -> App {
        self.serve(port, move |mut stream, _| async move {
            stream.write_all(greeting.as_bytes()).await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        })
    }

    /// Reads a PROXY header (version 2), then what the client sends to its end, and tells it what
    /// the header said: `SOURCE DESTINATION IDENTITY SERVICE`, the address the connection came
    /// from, and the client's bytes.
    pub fn serve_proxied(&self, port: u16) -> App {
        self.serve(port, |mut stream, peer| async move {
            let mut bytes = Vec::new();
            let (header, length) = loop {
                match decode(&bytes).map_err(io::Error::other)? {
                    Decoded::Header { header, length } => break (header, length),
                    Decoded::NeedMore(_) => {
                        if stream.read_buf(&mut bytes).await? == 0 {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                }
            };
            stream.read_to_end(&mut bytes).await?;
            let header = header.ok_or(io::ErrorKind::InvalidData)?;
            let told = format!(
                "{} {} {} {} {} ",
                header.source.ip(),
                header.destination,
                header.identity.as_deref().unwrap_or("-"),
                header.service.as_deref().unwrap_or("-"),
                peer.ip(),
            );
            stream.write_all(told.as_bytes()).await?;
            stream.write_all(&bytes[length..]).await?;
            stream.shutdown().await
        })
    }

    /// Says a number every `every`, for as long as the client stays: a connection that lives.
    pub fn serve_ticks(&self, port: u16, every: Duration) -> App {
        self.serve(port, move |mut stream, _| async move {
            for number in 0u64.. {
                stream
                    .write_all(format!("tick {number}\n").as_bytes())
                    .await?;
                tokio::time::sleep(every).await;
            }
            Ok(())
        })
    }

    /// Reads one byte and resets the connection.
    pub fn serve_reset(&self, port: u16) -> App {
        self.serve(port, |mut stream, _| async move {
            stream.read_exact(&mut [0]).await?;
            ambit_net::options::reset_on_close(&stream)
        })
    }

    /// Accepts and never reads.
    pub fn serve_stalled(&self, port: u16) -> App {
        self.serve(port, |stream, _| async move {
            std::future::pending::<()>().await;
            drop(stream);
            io::Result::Ok(())
        })
    }
}
