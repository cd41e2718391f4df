//! Plain TCP applications.

use std::io;
use std::time::Duration;

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
