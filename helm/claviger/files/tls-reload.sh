# Sends SIGHUP to the daemon when its certificate, key, client CA or revocation lists have changed.
files=/etc/claviger/tls
state() { cat "$files/tls.crt" "$files/tls.key" "$files/client-ca.crt" ${CRL:+"$CRL"} | sha256sum; }
trap 'exit 0' TERM
seen=$(state)
while :; do
    # In the background, so that SIGTERM need not wait for it.
    sleep "$INTERVAL" &
    wait $!
    now=$(state)
    [ "$now" != "$seen" ] || continue
    for process in /proc/[0-9]*; do
        { read -r name <"$process/comm"; } 2>/dev/null || continue
        [ "$name" = claviger ] || continue
        # Not every one: SIGHUP would end a command that somebody runs in the pod.
        case $(tr '\0' ' ' <"$process/cmdline") in
        *" serve "*)
            kill -HUP "${process#/proc/}"
            echo "certificates have changed; the daemon reads them again"
            ;;
        esac
    done
    seen=$now
done
