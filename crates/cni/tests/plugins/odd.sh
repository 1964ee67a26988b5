#!/bin/sh
# A plugin that does what the name it is called by says, for tests of those who run plugins. It
# notes beside itself what it was asked: $0.calls, and environment and input of each command.
echo "$CNI_COMMAND" >> "$0.calls"
env | grep '^CNI_' | sort > "$0.$CNI_COMMAND.env"
result='{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/24", "interface": 0}],
    "interfaces": [{"name": "odd0"}]}'
answer() {
    cat > "$0.$CNI_COMMAND.stdin"
    [ "$CNI_COMMAND" != ADD ] || echo "$result"
}
refuse() {
    echo '{"cniVersion": "1.0.0", "code": '"$1"', "msg": "'"$2"'", "details": "why"}'
    exit 1
}
case "${0##*/}" in
good*) answer ;;
no-address) echo '{"cniVersion": "1.0.0"}' ;;
refusing) [ "$CNI_COMMAND" = DEL ] || refuse 111 "pool is empty" ;;
refusing-all) refuse 11 "not now" ;;
broken) echo "disk on fire" >&2; exit 3 ;;
crashing) kill -SEGV $$ ;;
garbage) echo "10.9.0.2/24" ;;
mute) ;;
twice) echo '{"ips": [], "ips": []}' ;;
newer) echo '{"cniVersion": "9.0.0"}' ;;
flooding) head -c 3000000 /dev/zero | tr '\0' x ;;
deaf) echo "$result" ;;
loud) head -c 300000 /dev/zero | tr '\0' '\n' >&2; answer ;;
lingering) sleep 300 & echo $! > "$0.pid"; answer ;;
hanging) sleep 300 & echo $! > "$0.pid"; echo "looking for a lease" >&2; wait ;;
*) refuse 100 "no such oddity" ;;
esac
