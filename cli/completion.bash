_groundup() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="${COMP_WORDS[1]}" offered=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "@VERBS@" -- "$word"))
    return
  fi
  case "$verb $before" in
@CHOICES@
  esac
  if [ -n "$offered" ]; then
    COMPREPLY=($(compgen -W "$offered" -- "$word"))
    return
  fi
  case "$word" in
    -*)
      case "$verb" in
@OPTIONS@
      esac
      COMPREPLY=($(compgen -W "$offered" -- "$word")) ;;
  esac
}
complete -o default -F _groundup groundup
