#!/bin/sh
# A plugin that answers what a test has put beside it, and notes what it was asked: the commands of
# all plugins of its folder in `calls`, environment and input of each beside itself.
echo "${0##*/} $CNI_COMMAND" >> "${0%/*}/calls"
env | grep '^CNI_' | sort > "$0.$CNI_COMMAND.env"
cat > "$0.$CNI_COMMAND.stdin"
if [ -e "$0.$CNI_COMMAND.error" ]; then
    cat "$0.$CNI_COMMAND.error"
    exit 1
fi
if [ -e "$0.$CNI_COMMAND.result" ]; then
    cat "$0.$CNI_COMMAND.result"
fi
